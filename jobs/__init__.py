"""The daily stages: thin commands over `pipelines` and `fuxi_beta` that own engines, registries and sinks."""
