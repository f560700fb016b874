"""The embedded data set: pictures of coloured shapes, captions, questions, edits and test prompts.

Everything is a pure function of (split, seed, index) in numpy (the figures of a
first trial stand in docs). `scenes` decides what is shown and what is held out, `render` draws,
`captions` and `questions` put it into words, `edits` change it.
"""

from blip3o_jax.data.shapes.captions import CATEGORIES
from blip3o_jax.data.shapes.captions import Category
from blip3o_jax.data.shapes.captions import caption
from blip3o_jax.data.shapes.captions import category_caption
from blip3o_jax.data.shapes.captions import category_include
from blip3o_jax.data.shapes.captions import long_caption
from blip3o_jax.data.shapes.captions import test_prompts
from blip3o_jax.data.shapes.edits import EDITS
from blip3o_jax.data.shapes.edits import Edit
from blip3o_jax.data.shapes.edits import EditKind
from blip3o_jax.data.shapes.edits import edit
from blip3o_jax.data.shapes.edits import edit_at
from blip3o_jax.data.shapes.questions import KINDS
from blip3o_jax.data.shapes.questions import Kind
from blip3o_jax.data.shapes.questions import Question
from blip3o_jax.data.shapes.questions import conversation
from blip3o_jax.data.shapes.questions import question
from blip3o_jax.data.shapes.questions import question_at
from blip3o_jax.data.shapes.questions import questions
from blip3o_jax.data.shapes.questions import text_question
from blip3o_jax.data.shapes.reading import placed
from blip3o_jax.data.shapes.reading import shown
from blip3o_jax.data.shapes.reading import standing
from blip3o_jax.data.shapes.reading import told
from blip3o_jax.data.shapes.render import render
from blip3o_jax.data.shapes.render import render_many
from blip3o_jax.data.shapes.scenes import COLORS
from blip3o_jax.data.shapes.scenes import GRID
from blip3o_jax.data.shapes.scenes import HELD_OUT_PAIRS
from blip3o_jax.data.shapes.scenes import MOST_OBJECTS
from blip3o_jax.data.shapes.scenes import PALETTE
from blip3o_jax.data.shapes.scenes import RELATIONS
from blip3o_jax.data.shapes.scenes import SHAPES
from blip3o_jax.data.shapes.scenes import SIZE
from blip3o_jax.data.shapes.scenes import SPLITS
from blip3o_jax.data.shapes.scenes import Object
from blip3o_jax.data.shapes.scenes import Scene
from blip3o_jax.data.shapes.scenes import Split
from blip3o_jax.data.shapes.scenes import scene
from blip3o_jax.data.shapes.scenes import scene_at
from blip3o_jax.data.shapes.scenes import scene_of
from blip3o_jax.data.shapes.words import EDIT_WORDS
from blip3o_jax.data.shapes.words import SUMMARY
from blip3o_jax.data.shapes.words import WORDS

__all__ = [
  "CATEGORIES",
  "COLORS",
  "EDITS",
  "EDIT_WORDS",
  "GRID",
  "HELD_OUT_PAIRS",
  "KINDS",
  "MOST_OBJECTS",
  "PALETTE",
  "RELATIONS",
  "SHAPES",
  "SIZE",
  "SPLITS",
  "SUMMARY",
  "WORDS",
  "Category",
  "Edit",
  "EditKind",
  "Kind",
  "Object",
  "Question",
  "Scene",
  "Split",
  "caption",
  "category_caption",
  "category_include",
  "conversation",
  "edit",
  "edit_at",
  "long_caption",
  "placed",
  "question",
  "question_at",
  "questions",
  "render",
  "render_many",
  "scene",
  "scene_at",
  "scene_of",
  "shown",
  "standing",
  "test_prompts",
  "text_question",
  "told",
]
