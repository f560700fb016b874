"""A loaded model behind HTTP: the OpenAI API of pictures and of chat, batched, with a page.

It takes any object with the methods of `interface.Model`, and knows neither jax nor a system.
"""
