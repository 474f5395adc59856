"""Notebooks of docs/tutorials: a hook of MkDocs shows them as pages; ``make tour`` runs them again.

They are kept with their outputs, which GitHub shows too.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tutorials"


def on_files(files: Any, config: Any) -> Any:
    """A page beside each notebook, and its pictures."""
    from mkdocs.structure.files import File

    for notebook in FOLDER.glob("*.ipynb"):
        text, pictures = page_of(notebook)
        pages = {notebook.with_suffix(".md").name: text} | pictures
        for name, content in pages.items():
            files.append(File.generated(config, f"{FOLDER.name}/{name}", content=content))
    return files


def page_of(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    parts, pictures = [], {}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        told = ""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data:
                told += "".join(output.get("text", data.get("text/plain", "")))
            else:
                name = f"{notebook.stem}-{number}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![what the lines above draw]({name})")
        if told.strip():
            parts.append(f"```\n{told.strip(chr(10))}\n```")
    return "\n\n".join(parts) + f"\n\n[The notebook]({notebook.name})\n", pictures


def run(notebook: Path, folder: Path) -> Any:
    """Runs a notebook in a folder; what it shows, each stream as one output, is in what comes back."""
    import nbclient
    import nbformat

    found = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(found, timeout=600, coalesce_streams=True, resources=resources).execute()
    for cell in (cell for cell in found.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)  # the times of day
        # Warnings, with the paths of this machine.
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    found.metadata.language_info = {"name": "python"}
    return found


if __name__ == "__main__":
    import os
    from importlib.util import find_spec

    import nbformat

    lacking = {"postgresql": "OPTUNA_STORAGE" not in os.environ, "yolo": find_spec("ultralytics") is None}
    for file in FOLDER.glob("*.ipynb"):
        if lacking.get(file.stem):
            print(f"{file.name} is left as it is: it needs a database in OPTUNA_STORAGE, or Ultralytics")
            continue
        with tempfile.TemporaryDirectory() as place:
            nbformat.write(run(file, Path(place)), file)
