"""The model: `model.source` goes in, what planning needs to know and a folder of weights come out."""
