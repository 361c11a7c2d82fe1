"""Text from a checkpoint. Usage: python examples/01_generate.py MODEL"""

import sys

import mla_jax

llm = mla_jax.LLM(sys.argv[1], max_model_len=512)

params = mla_jax.SamplingParams(max_tokens=24, temperature=0.0)
for completion in llm.generate(["The latent cache", "RoPE is applied"], params):
    print(repr(completion.text), completion.finish_reason, completion.usage)

for piece in llm.stream("Pages and slots", params):
    print(piece.text, end="", flush=True)
print(f"\n{piece.generation_tps:.1f} tokens/s")
