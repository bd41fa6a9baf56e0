"""What the authors report (arXiv 2408.04840 v2, and the README of the released code), in per cent."""

SIZES = ("1B", "2B", "7B-240728", "7B-241101")
TABLES = {
    "paper-multi": ("NLVR2", "Mantis", "MathVerse-mv", "SciVerse-mv", "BLINK", "Q-Bench2"),
    "paper-video": ("NextQA", "MVBench", "VideoMME", "LongVideoBench", "MLVU"),
    "paper-single": ("VQAv2", "OK-VQA", "GQA", "VizWiz", "TextVQA", "MMB-EN", "MMB-CN", "MM-Vet", "POPE", "AI2D"),
}
_RESULTS = """
NextQA          65.3 74.5 78.6 82.3
MVBench         47.1 51.8 54.5 59.5
VideoMME        41.8 48.4 53.5 59.3
LongVideoBench  42.8 50.4 52.1 59.7
MLVU            52.7 59.8 63.7 70.0
NLVR2           75.8 85.5 90.8 92.7
Mantis          39.6 54.4 63.1 67.3
MathVerse-mv    23.9 42.5 65.0 65.1
SciVerse-mv     26.4 30.0 86.2 82.7
BLINK           40.6 43.0 50.3 53.8
Q-Bench2        50.6 65.8 74.0 77.7
VQAv2           69.2 79.3 82.1 83.2
OK-VQA          40.3 53.2 60.1 61.4
GQA             55.7 61.0 65.0 64.7
VizWiz          34.8 56.6 63.5 62.9
TextVQA         53.1 62.6 69.0 71.4
MMB-EN          51.4 65.7 77.6 80.4
MMB-CN          44.8 61.8 74.3 79.1
MM-Vet          21.4 36.3 40.1 39.8
POPE            85.3 87.4 88.2 88.1
AI2D            46.7 62.6 73.8 77.8
"""
RESULTS: dict[str, dict[str, float]] = {
    name: dict(zip(SIZES, map(float, numbers), strict=True)) for name, *numbers in map(str.split, _RESULTS.split("\n")[1:-1])
}
# Distractor Resistance: circular accuracy by the number of images.
DISTRACTOR_RESISTANCE = {
    "mPLUG-Owl3-7B": {50: 43.09, 400: 28.58},
    "LLaVA-Next-Interleave-7B": {20: 43.18, 50: 12.52},
}
