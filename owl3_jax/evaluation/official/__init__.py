"""How the released evaluation reads answers, quirks included, as functions of text.

vqa       the VQA evaluator's normaliser and soft accuracy, EvalAI's normaliser, GQA's
choices   options out of answers: MMBench, Q-Bench2, Video-MME, MVBench and LongVideoBench, LLaVA-Interleave
yes_no    POPE's confusion counts, NLVR2

Source: X-PLUG/mPLUG-Owl, folder mPLUG-Owl3/evaluation, of 2024-09-23.
"""
