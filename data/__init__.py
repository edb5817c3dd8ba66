"""Real reference samples and pretrained surrogates shipped with calogen."""
