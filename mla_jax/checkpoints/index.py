from pathlib import Path
from mla_jax.checkpoints.safetensors import SafetensorsFile
class TensorIndex:
    def __init__(self, folder):
        self.files=[SafetensorsFile(p) for p in sorted(Path(folder).glob("*.safetensors"))]
        self.where={n:f for f in self.files for n in f.tensors}
    def __enter__(self): return self
    def __exit__(self,*a):
        for f in self.files: f.close()
