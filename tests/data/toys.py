"""A small corpus in files."""

from xdistil_jax.data.corpus import DataSpec


def write(path, *sentences, tag="O"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("".join(f"{w}\t{tag}\n" for w in s.split()) for s in sentences))
    return str(path)


def two_languages(tmp_path):
    """Labelled files of de and en, text of en: a sentence of dev stands in train and text."""
    for language in ("de", "en"):
        folder = tmp_path / "ner" / language
        write(folder / "train.txt", *(f"{language} {n}" for n in range(20)), "same", tag="B-PER")
        write(folder / "dev.txt", f"{language} dev", "same", tag="B-PER")
        write(folder / "test.txt", f"{language} test", tag="B-PER")
    (tmp_path / "text").mkdir()
    lines = "".join(f"line {n} .\n" for n in range(30))
    (tmp_path / "text" / "en.txt").write_text(f"same\n{lines}en dev\n")
    (tmp_path / "text" / "SOURCES.tsv").write_text("en\tx\n")
    return tmp_path


def spec_of(root, **options):
    return DataSpec(root=str(root / "ner"), unlabelled_root=str(root / "text"), **options)
