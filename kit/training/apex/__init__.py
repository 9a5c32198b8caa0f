"""On kit's search path, so that `import kit.amp`, apex's usual import, finds `amp.py` here."""
