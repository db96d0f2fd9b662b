"""The process that user code runs in: started by the agent, fed through a pipe, replaced when it dies.

It knows functions, payloads and one attempt's surroundings; it must not know the orchestrator, sessions or gRPC (Storage is loaded when a
task asks for it). Whatever it does, it cannot harm the agent: all that comes from it is bounded, checked and attributed there.
"""
