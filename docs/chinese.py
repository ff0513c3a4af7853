"""Search in Chinese without a dictionary: Sphinx knows words only where jieba is installed, here runs of signs do."""

import re

from sphinx.application import Sphinx
from sphinx.search.zh import SearchChinese


class Runs(SearchChinese):
    """Every run of two to four signs is a term; a page or two of them is a small index."""

    language_name = "English"  # of the stemmer; Sphinx 9.0 writes "ChineseStemmer" into the page, which nobody defines

    def split(self, input: str) -> list[str]:
        latin = self.latin1_letters.findall(input)
        self.latin_terms.update(latin)
        signs = re.findall(r"[\u4e00-\u9fff]+", input)
        return latin + [run[at : at + size] for run in signs for size in (2, 3, 4) for at in range(len(run) - size + 1)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_search_language(Runs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
