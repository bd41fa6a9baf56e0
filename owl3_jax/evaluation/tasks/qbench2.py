"""Q-Bench2: which of two images has more of a quality?"""

from owl3_jax.evaluation.data_root import DataRoot, hub_files
from owl3_jax.evaluation.multiple_choice import LETTER, judge_letters, letter_of, lettered, require
from owl3_jax.evaluation.official.choices import marked_letter
from owl3_jax.evaluation.question import Judged, Question
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.evaluation.task import About, Task

_FOLDERS = ("qbench2", "qbench2hf")


def read(data: DataRoot) -> list[Question]:
    """The development set. The right letter is that of the first option that equals the right one's text."""
    questions = []
    for number, row in enumerate(data.hub_rows(_FOLDERS, "dev")):
        name = str(row.get("question_id", row.get("id", number)))
        require(row, f"question {name} of Q-Bench2", "question", "correct_choice")
        options = tuple(
            str(row[key]) for key in ("option0", "option1", "option2", "option3") if row.get(key) not in (None, "N/A")
        )
        right = options[LETTERS.index(letter_of(row["correct_choice"], options, f"question {name} of Q-Bench2", ("letter",)))]
        gold = LETTERS[options.index(right)]
        text = f"Image 1: <|image|>\nImage 2: <|image|>\nQuestion: {row['question']}\nOptions: {lettered(options)}\n{LETTER}"
        images = data.media(row, "image1"), data.media(row, "image2")
        questions.append(Question(name, text, gold, images, options=options))
    return questions


def judge(question: Question, answer: str) -> Judged:
    """A letter with a mark, or one that ends the answer."""
    return judge_letters(question, answer, marked_letter(answer))


QBENCH2 = Task(
    "qbench2_dev",
    About(
        "Q-Bench2, dev",
        (hub_files(_FOLDERS, "dev"),),
        "q-future/Q-Bench2-HF on the Hugging Face hub, in dataset/qbench2",
        "Q-Bench2",
        aliases=("q_bench2", "qbench2", "q-bench2"),
    ),
    read,
    judge,
)
