from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.inference.batcher import similar
from owl3_jax.inference.sampling import Sampling

SAMPLINGS = (Sampling(), Sampling(n=2, temperature=1.0), Sampling(n=2, num_beams=3))
READY = st.builds(
    lambda sampling, images, tokens: SimpleNamespace(
        request=SimpleNamespace(sampling=sampling), prompt=SimpleNamespace(num_images=images, input_ids=range(tokens))
    ),
    st.sampled_from(SAMPLINGS),
    st.integers(0, 3),
    st.integers(1, 5),
)


@settings(deadline=None, max_examples=50)
@given(ready=st.lists(READY, max_size=20), batch_size=st.integers(1, 6))
def test_batches_hold_every_prompt_once_of_one_kind_and_by_size(ready, batch_size):
    batches = list(similar(ready, batch_size))
    assert sorted(id(each) for batch in batches for each in batch) == sorted(map(id, ready))
    for sampling in SAMPLINGS:
        own = [batch for batch in batches if batch[0].request.sampling == sampling]
        sizes = [(each.prompt.num_images, len(each.prompt.input_ids)) for batch in own for each in batch]
        assert sizes == sorted(sizes)
        assert [len(batch) for batch in own[:-1]] == [batch_size] * (len(own) - 1)
        assert all(len({each.request.sampling for each in batch}) == 1 for batch in own)
