"""An OpenAI-compatible server over the engine.

__main__            `python -m paged.server`
runner              starts the engine's process and uvicorn; signals
app                 routes
completions, chat   /v1/completions and /v1/chat/completions; chunks: their events
parameters, beams   a request's body to sampling parameters, or to a beam search
client              the engine as the HTTP process sees it
engine_process      the engine's loop, in its own process; tracked: what of an output is told
wire                what crosses between the two
"""
