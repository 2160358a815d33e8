"""Human evaluation: planning, exporting, serving, importing and analysing blind studies of documents and images. See docs/human.md."""
