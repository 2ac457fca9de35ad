"""task=quality: how far a configuration's outputs are from those of the same model in fp32."""
