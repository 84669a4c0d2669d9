from distill.data.sample import Sample
from distill.miniature.items import make_item


def make_sample(num_images: int) -> Sample:
    item = make_item(num_images, num_images, "open")
    return Sample(messages=tuple(item.messages()), answer=item.answer, name=f"{num_images} images")


TEXT = Sample(messages=({"role": "user", "content": "what else is there?"},), answer="yes", name="text")
