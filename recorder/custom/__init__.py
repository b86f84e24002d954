"""The paper's custom model at full size: its configs, its constructor and its pipeline."""
