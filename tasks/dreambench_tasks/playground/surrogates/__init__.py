"""Small surrogates for DreamLLM's published parts: CLIP, Stable Diffusion and the language model, each trained here on the playground."""
