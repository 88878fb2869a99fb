"""RA-DIT's retriever half (Lin et al. 2023, arXiv 2310.01352, section 2.3): LM-supervised retrieval, query side only.

p_LSR over the ten nearest passages, from the answer's probability after each, fixed once; 95 % of the examples come
from the corpus (the first 50 words of a chunk ask for its last 50), 5 % from the questions. The paper's temperature for
the teacher is 0.01 on the probability itself, which underflows for answers of many tokens: here it is the mean
probability per token at 0.1. It prints KL(p_R ‖ p_LSR); the default here is KL(p_LSR ‖ p_R), as the authors of REPLUG
and Atlas have it in their code.
"""

from __future__ import annotations

from tuning.retriever_config import RetrieverConfig

TRAIN = RetrieverConfig(
    objective="lsr",
    learning_rate=1e-5,
    num_train_epochs=2,
    temperature=0.05,
    teacher_temperature=0.1,
    score="mean-probability",
    candidates=10,
    corpus_task="halves",
    corpus_examples=380,
    corpus_share=0.95,
)
