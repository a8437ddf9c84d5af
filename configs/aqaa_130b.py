"""Step-Audio-AQAA at its published size: the values are the defaults of ``aqaa_jax/config.py``.

130 B decoder (88 layers of 12,288, 96 query and 8 key/value heads, 74,752 ids), Paraformer-large and S3 tokenizers,
CosyVoice-300M-25Hz vocoder (arXiv 2506.08967; Step-Audio-Chat, Step-Audio-Tokenizer, Step-Audio-TTS-3B).
"""

from ml_collections import ConfigDict

from aqaa_jax.config import SystemConfig, to_dict


def get_config(arg: str = "full") -> ConfigDict:
    if arg != "full":
        raise ValueError(f"configs/aqaa_130b.py:{arg} is not known; expected :full")
    return ConfigDict(to_dict(SystemConfig()))
