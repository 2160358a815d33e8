"""The playground: a small world of coloured shapes, in every benchmark's official format."""
