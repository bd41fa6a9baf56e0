"""Messages, images and videos to samples, with the tiny word tokenizer and the released one."""

import copy
import dataclasses

import numpy as np
import pytest
from PIL import Image

from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.chat import MEDIA_MARKERS
from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.processor import Processor, Sample
from tests.qwen import chat_tokenizer

SIZE = 11
MESSAGES = [{"role": "user", "content": "<|image|><|image|>\nWhich digit is red?"}, {"role": "assistant", "content": "red 7"}]


@pytest.fixture
def processor() -> Processor:
    return Processor(make_tokenizer(), SIZE)


def images() -> list[Image.Image]:
    return [Image.new("RGB", (7, 5), (10, 20, 30)), Image.new("L", (3, 13), 40)]


def test_a_training_sample_is_complete(processor):
    sample = processor(MESSAGES, images(), training=True)
    assert sample.input_ids.dtype == np.int32
    assert sample.input_ids.shape == sample.labels.shape
    assert processor.tokenizer.decode(sample.input_ids[sample.labels]) == "red 7"
    placeholder = processor.tokenizer.token_id("<|image|>")
    assert sample.image_starts.tolist() == np.flatnonzero(sample.input_ids == placeholder).tolist() == [8, 9]
    assert (sample.pixel_values.shape, sample.pixel_values.dtype) == ((2, SIZE, SIZE, 3), np.uint8)
    assert (sample.pixel_values == np.array([[10, 20, 30], [40, 40, 40]])[:, None, None]).all()


def test_a_prompt_ends_where_the_answer_begins(processor):
    training = processor(MESSAGES, images(), training=True)
    for messages in ([*MESSAGES[:1], {"role": "assistant", "content": ""}], MESSAGES[:1]):
        prompt = processor(messages, images())
        assert not prompt.labels.any()
        answer = np.flatnonzero(training.labels)[0]
        np.testing.assert_array_equal(prompt.input_ids, training.input_ids[:answer])


def test_text_alone_has_no_pixels(processor):
    sample = processor([{"role": "user", "content": "How many images?"}], [])
    assert (sample.pixel_values.shape, sample.pixel_values.dtype) == ((0, SIZE, SIZE, 3), np.uint8)
    assert sample.image_starts.shape == (0,)


def test_input_is_not_changed_and_a_second_call_is_equal(processor):
    messages, pictures = copy.deepcopy(MESSAGES), images()
    first, second = processor(messages, pictures), processor(messages, pictures)
    assert messages == MESSAGES
    assert all(picture.tobytes() == original.tobytes() for picture, original in zip(pictures, images(), strict=True))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("given", [0, 1, 3])
def test_image_and_placeholder_counts_must_agree(processor, given):
    pictures = (images() + images())[:given]
    with pytest.raises(ValueError, match=rf"the messages have 2 <\|image\|> placeholders, but {given} images were given"):
        processor(MESSAGES, pictures)


def test_video_and_placeholder_counts_must_agree(processor):
    for videos in (None, [images()] * 2):
        with pytest.raises(ValueError, match=r"the messages have 1 <\|video\|> placeholders, but [02] videos were given"):
            processor("<|video|>", videos=videos)
    with pytest.raises(ValueError, match=r"the messages have 0 <\|video\|> placeholders, but 1 videos were given"):
        processor("<|image|>", images()[:1], [images()])


def test_a_prompt_that_ends_with_an_answer_leaves_it_open(processor):
    training = processor(MESSAGES, images(), training=True)
    np.testing.assert_array_equal(processor(MESSAGES, images()).input_ids, training.input_ids[:-2])  # without its two ends


def test_a_single_image_or_video_needs_no_list(processor, tmp_path):
    (image,) = images()[:1]
    image.save(tmp_path / "photo.png")
    (tmp_path / "film").mkdir()
    image.save(tmp_path / "film" / "1.png")
    listed = processor("What?", [image])
    for single in (
        image,
        np.asarray(image),
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        (tmp_path / "photo.png").read_bytes(),
    ):
        for one, other in zip(processor("What?", single), listed, strict=True):
            np.testing.assert_array_equal(one, other)
    for single in (str(tmp_path / "film"), [tmp_path / "film"], np.asarray(image)[None]):
        assert len(processor("What?", videos=single).pixel_values) == 1


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        (None, None, "messages is None; it must be a question as a string, or a list"),
        (b"What?", None, "messages is of type bytes"),
        (3, None, "messages is of type int"),
        (["hi"], None, "message 0 is of type str"),
        ([("user", "hi")], None, "message 0 is of type tuple"),
        ([{"role": "user"}], None, "message 0 has no 'content'; its keys are 'role'"),
        ([{}], None, "message 0 has no 'role'; its keys are none"),
        ([], None, "there are no messages"),
        ([{"role": "user", "content": None}], None, "message 0 has content of type NoneType"),
        ([{"role": "bot", "content": "hi"}], None, "message 0 has role 'bot'"),
        ([{"role": "system", "content": "Be terse."}], None, "message 0, the last one, is the system's; a prompt ends with"),
        (
            [{"role": "user", "content": "hi"}, {"role": "system", "content": "x"}],
            None,
            "message 1, the last one, is the system's",
        ),
        ("What?", {"a": 1}, "images is of type dict; it must be a list, or None"),
        ("What?", 3, "images is of type int; it must be a list, or None"),
        ("What?", np.zeros((2, 4, 4, 3), np.uint8), "images is of type ndarray; it must be a list, or None"),
        ("What?", [""], "cannot read image 0: its path is empty"),
        (
            "What?",
            ["data:image/png;base64," + "A" * 10**5],
            r"image 0 \(data:image/png;base64, 100022 characters\)",
        ),
    ],
)
def test_what_is_no_conversation_gets_a_sentence(processor, messages, images, message):
    with pytest.raises(ValueError, match=message) as caught:
        processor(messages, images)
    assert len(str(caught.value)) < 300


def test_one_message_needs_no_list(processor):
    message = {"role": "user", "content": "How many images?"}
    np.testing.assert_array_equal(processor(message).input_ids, processor([message]).input_ids)


RELEASED = Processor(chat_tokenizer(), SIZE)
MARKERS_AS_TOKENS = Processor(chat_tokenizer(*MEDIA_MARKERS), SIZE, media_style="markers")
WIDE, SQUARE = Image.new("RGB", (60, 20), (1, 1, 1)), Image.new("RGB", (30, 30), (2, 2, 2))
FRAMES = [Image.new("RGB", (8, 6), (10 + index, 0, 0)) for index in range(3)]


def text_of(processor: Processor, sample: Sample) -> str:
    """The user's turn of a prompt."""
    text = processor.tokenizer.decode(sample.input_ids, skip_special_tokens=False)
    return text.split("user\n")[1].removesuffix("<|im_end|>\n<|im_start|>assistant\n")


def colours(sample: Sample) -> list[int]:
    return sample.pixel_values[:, 0, 0, 0].tolist()


def test_a_bare_question_gets_a_placeholder_per_image_and_video():
    sample = RELEASED("What?", [WIDE, SQUARE], [FRAMES])
    assert text_of(RELEASED, sample) == "<|image|>\n<|image|>\n<|image|><|image|><|image|>\nWhat?"
    assert colours(sample) == [1, 2, 10, 11, 12]
    assert text_of(RELEASED, RELEASED("Is <|image|> wide?", [WIDE])) == "Is <|image|> wide?"
    assert text_of(RELEASED, RELEASED("What?")) == "What?"


def test_every_image_is_cropped_by_its_own_grid():
    sample = RELEASED("<|image|> and <|image|>", [WIDE, SQUARE], crop=True)
    assert text_of(RELEASED, sample) == (
        "Cut to 1 rows 3 columns with a global view\nsubimg(0,0)<|image|> subimg(0,1)<|image|> subimg(0,2)<|image|>\n"
        "global_view<|image|> and Cut to 2 rows 2 columns with a global view\nsubimg(0,0)<|image|> subimg(0,1)<|image|>\n"
        "subimg(1,0)<|image|> subimg(1,1)<|image|>\nglobal_view<|image|>"
    )
    assert colours(sample) == [1] * 4 + [2] * 5


@pytest.mark.parametrize("processor", [RELEASED, MARKERS_AS_TOKENS])
def test_images_and_videos_mix_in_any_order(processor):
    sample = processor("<|video|> <|image|> <|video|>", [SQUARE], [FRAMES, FRAMES[:1]], crop=False)
    assert colours(sample) == [10, 11, 12, 2, 10]
    starts, ids = sample.image_starts, sample.input_ids
    assert all(ids[start : start + 5].tolist() == [27, 91, 1805, 91, 29] for start in starts)


def test_a_video_turns_crops_off_where_the_text_is_in_words():
    words = RELEASED("<|image|><|video|>", [SQUARE], [FRAMES], crop=True)
    assert colours(words) == [2, 10, 11, 12]
    markers = MARKERS_AS_TOKENS("<|image|><|video|>", [SQUARE], [FRAMES], crop=True)
    assert colours(markers) == [2] * 5 + [10, 11, 12]


def test_markers_around_crops_and_frames_are_the_official_ids():
    sample = MARKERS_AS_TOKENS("<|image|>\nDescribe this image.", [SQUARE], crop=True)
    image = [27, 91, 1805, 91, 29]
    expected = [151646, 17, 9, 17, 198, *image, 220, *image, 198, *image, 220, *image, 198, *image, 151647, 198, 74785]
    assert sample.input_ids[8 : 8 + len(expected)].tolist() == expected
    video = MARKERS_AS_TOKENS("<|video|>", videos=[FRAMES[:2]])
    assert video.input_ids[8:-5].tolist() == [151648, *image, *image, 151649]


def test_crop_defaults_to_the_processors_own():
    cropping = dataclasses.replace(RELEASED, crop=True)
    assert len(cropping("<|image|>", [SQUARE]).pixel_values) == 5
    assert len(cropping("<|image|>", [SQUARE], crop=False).pixel_values) == 1
    assert len(RELEASED("<|image|>", [SQUARE]).pixel_values) == 1


def test_crops_follow_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    WIDE.save(tmp_path / "turned.jpg", exif=exif)
    sample = RELEASED("<|image|>", [tmp_path / "turned.jpg"], crop=True)
    assert text_of(RELEASED, sample).startswith("Cut to 3 rows 1 columns")


def test_nothing_is_decoded_before_its_turn(tmp_path):
    SQUARE.save(tmp_path / "a.png")
    prepared = RELEASED.prepare("What?", [tmp_path / "a.png", tmp_path / "missing.png"], [FRAMES])
    assert prepared.num_images == len(prepared.image_starts) == 5
    views = prepared.views()
    assert next(views)[0, 0, 0] == 2
    with pytest.raises(UnreadableImage, match=r"cannot read image 1 \(.*missing\.png\)"):
        next(views)


def test_prepared_and_processed_are_the_same():
    arguments = ("<|image|> or <|video|>?", [WIDE], [FRAMES], True)
    prepared, sample = MARKERS_AS_TOKENS.prepare(*arguments), MARKERS_AS_TOKENS(*arguments)
    np.testing.assert_array_equal(prepared.input_ids, sample.input_ids)
    np.testing.assert_array_equal(prepared.image_starts, sample.image_starts)
    for _ in range(2):  # views can be asked for again
        np.testing.assert_array_equal(list(prepared.views()), sample.pixel_values)
