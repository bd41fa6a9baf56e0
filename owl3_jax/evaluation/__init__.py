"""Scores of a model: prompts of benchmarks, their answers, and what is reported.

task                        the protocol that a benchmark implements
tasks                       one file for each benchmark
official                    how the released evaluation reads answers
run                         one evaluation: answers all prompts, scores them, shows the scores
answering, answer_file      all prompts through the one batcher; the file from which a later call resumes
scores                      scores as pure functions of answers
report, samples             report.json and what is printed; which prompts are shown
curves, contact_sheet       figures
"""
