"""Reading and writing: images, audio, weights."""

from tinyomni.io.audio import AudioLike, check_not_silent, load_audio, load_speech
from tinyomni.io.images import ImageLike, load_image

__all__ = ["AudioLike", "ImageLike", "check_not_silent", "load_audio", "load_image", "load_speech"]
