"""corom's benchmarks: latency, throughput, retrieval quality and peers, side by side."""
