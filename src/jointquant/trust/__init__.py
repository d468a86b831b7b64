"""Input that nobody vouches for: files, JSON, YAML, safetensors headers, model folders, and where output may go."""
