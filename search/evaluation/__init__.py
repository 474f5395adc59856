"""One candidate: built, healed and scored by a proxy; and which candidates are looked at again."""
