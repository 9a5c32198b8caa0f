"""Models that other people trained, brought into the kit's form: facts, mapping, import, fetch."""
