"""The masked bidirectional LSTM, its training and predictions; it and the classifier as one."""

from kit.lstm.model import (
    LSTMConfig,
    SequenceLSTM,
    SequenceModel,
    SpatialDropout,
    compute_loss,
    load_lstm,
    make_model,
    predict_by_all,
    predict_logits,
    predict_series,
    sequence_loss,
    split_output,
    train_lstm,
)

__all__ = [
    "LSTMConfig",
    "SequenceLSTM",
    "SequenceModel",
    "SpatialDropout",
    "compute_loss",
    "load_lstm",
    "make_model",
    "predict_by_all",
    "predict_logits",
    "predict_series",
    "sequence_loss",
    "split_output",
    "train_lstm",
]
