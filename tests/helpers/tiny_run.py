"""Overrides of a run that takes a second beside the imports."""

TINY = (
    "model=tiny",
    "model.num_layers=2",
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "data=markov",
    "data.length=40",
    "data.train_documents=6",
    "data.validation_documents=3",
    "memory.segment_length=8",
    "trainer.max_steps=8",
    "trainer.warmup_steps=2",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "evaluation.documents=3",
    "evaluation.batch_size=2",
    "logger=none",
)
XL = ("method=transformer_xl", "memory.size=12", "memory.window=12")
