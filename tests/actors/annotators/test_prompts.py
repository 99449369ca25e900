"""Prompt templates are checked as a whole; a quoted caption stays in its quotes."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onibi.actors.annotators.prompt import AnswerForm, PromptWriter, judged_sentence
from onibi.actors.annotators.prompt_template import read_prompt_template, shipped_prompts
from onibi.actors.annotators.quoted_caption import quoted_caption
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.errors import ConfigError


@given(st.text(st.characters(codec=None), max_size=400), st.integers(16, 300))
def test_a_quoted_caption_is_one_line_of_json_cut_and_without_control_tokens(text, most):
    quoted = quoted_caption(text, most)
    assert len(quoted.splitlines()) == 1 and quoted.isprintable()
    read = json.loads(quoted)
    assert len(read) <= most
    assert not re.search(r"<\S|\S>|\[/?[A-Z_]{2,}\]", read)
    quoted.encode()


def test_plain_english_is_left_as_it_is_and_a_long_text_is_marked_as_cut():
    assert quoted_caption("You see here a key named The Master Key of Thievery.", 300) == (
        '"You see here a key named The Master Key of Thievery."'
    )
    assert quoted_caption("What do you want to eat? [fgh or ?*]", 300) == '"What do you want to eat? [fgh or ?*]"'
    assert quoted_caption("abcdefghijklmnopqrstuvwxyz", 16) == '"abcdefghijklmno…"'


@pytest.mark.parametrize("name", shipped_prompts())
@pytest.mark.parametrize("form", AnswerForm)
def test_every_shipped_template_makes_a_prompt_with_its_goal_and_examples(name, form):
    template = read_prompt_template(name)
    writer = PromptWriter(template, template.goal, 300, whole_captions=True, explain=False)
    prompt = writer.labels([AnnotationRequest(key=0, key_text="It rains.", raw_text="It rains.")], form)
    assert template.goal in prompt.system and '"It rains."' in prompt.user
    assert all(example.caption in prompt.system for example in template.examples)
    # As many examples of the one as of the other, or the judge learns that one answer is commoner.
    labels = [example.label.value for example in template.examples]
    assert labels.count("helpful") == labels.count("unhelpful") > 0
    answers = {example.answer.value for example in template.pair_examples}
    assert answers == {"first", "second", "tie"}


def test_all_faults_of_a_template_are_told_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 0\ngoal: ''\ncontext: a\nhelpful: b\nhelpfull: c\nexamples: [{goal: g}]\npair_examples: x\n"
    )
    with pytest.raises(ConfigError) as failure:
        read_prompt_template(str(path))
    for fault in (
        "version is 0",
        "goal is ''",
        "unhelpful is null",
        "'helpfull'",
        "examples, entry 1",
        "pair_examples is",
    ):
        assert fault in str(failure.value)


def test_an_unknown_template_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"'nethak'.*Did you mean 'nethack'.*general, minigrid, nethack"):
        read_prompt_template("nethak")


@pytest.mark.parametrize(
    ("key", "raw", "sentence"),
    [
        ("The door opens.", "The door opens.", "The door opens."),
        ("* - # rocks.", "You kill the newt!  g - 3 rocks.", "g - 3 rocks."),
        ("You kill the newt!", "You kill the newt!  g - 3 rocks.", "You kill the newt!"),
        ("You have # gold pieces.", "You have 12 gold pieces.", "You have 12 gold pieces."),
        ("Not in there.", "Something else.", "Not in there."),
    ],
)
def test_the_judged_sentence_is_the_one_that_made_the_key_as_it_was_printed(key, raw, sentence):
    assert judged_sentence(AnnotationRequest(key=0, key_text=key, raw_text=raw)) == sentence
