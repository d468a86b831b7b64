"""Model families as data, and the stream of decoder layers; nothing here knows a quantizer."""
