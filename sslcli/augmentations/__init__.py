"""Operations on views and presets of views, one file per plugin."""
