"""Strong views of an unlabeled batch, mixing of its samples, and the targets made from a network's predictions."""
