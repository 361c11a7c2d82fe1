from pathlib import Path
def resolve(path, revision=None): return Path(path)
