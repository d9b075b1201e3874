"""Speed, memory and quality of artefacts, each with its proof beside it."""
