"""After quantization: what an artifact stores is trained by how far its predictions are from its model's."""
