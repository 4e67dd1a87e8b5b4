"""OpenVINO in place of torch, on a CPU: networks converted, quantized, kept on the disk and run."""
