//! From the bytes of an image file to the tensor that the backbone was trained on.
