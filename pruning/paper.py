"""Where a method was published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication.

    Attributes:
        authors: such as ``Li et al.``
        venue: where, and the year.
        link: ``arXiv`` and the number, or ``doi`` and the name; empty where there is neither.
    """

    authors: str
    venue: str
    link: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.authors, self.venue, self.link) if part)

    @property
    def url(self) -> str:
        """The address behind the link; empty where there is none.

        >>> Paper("Lee et al.", "ICLR 2019", "arXiv 1810.02340").url
        'https://arxiv.org/abs/1810.02340'
        """
        kind, _, name = self.link.partition(" ")
        return {"arXiv": f"https://arxiv.org/abs/{name}", "doi": f"https://doi.org/{name}"}.get(kind, "")
