"""How much disk a run takes at a time: more than it leaves, and less than all that it writes."""

from __future__ import annotations

from kit.recipes import Recipe
from kit.runs.directory import list_folds, list_kept_epochs, list_lstm_epochs
from kit.runs.rates import Rates

STORE_BYTES = 6 * 4 + 16  # of a slice beside its embedding: logits, SOPInstanceUID
PREDICTION_BYTES = 6 * 8 + 16  # of a slice in a member's predictions, out-of-fold or test table


def weigh_training(weights: int, staying: int) -> int:
    """The most bytes of a training that keeps the weights of its last `staying` epochs.

    That is before the last is over: its checkpoint twice, while it is replaced, of weights and two
    moments each, and the other epochs' weights. Without any, those of one are there for a moment.
    """
    return weights * (2 * 3 + max(staying - 1, 0))


def find_peak(recipe: Recipe, images: int, predicted: int, rates: Rates) -> int:
    """The most bytes of a run in which one LSTM is trained at a time, in the order of `run_recipe`.

    `images` are embedded; `predicted` are those that a fold's LSTMs predict.
    """
    kept, kept_by_lstm = (len(epochs) for epochs in list_kept_epochs(recipe))
    mean = int(recipe.average_weights)  # of the epochs' weights, a file beside them
    stores = recipe.bag_classifier_epochs
    rest = images * STORE_BYTES
    store = images * 2 * rates.embedding_size + rest
    written = (
        len(list_lstm_epochs(recipe)) * predicted * PREDICTION_BYTES
    )  # by the LSTM on one store
    left, peaks = 0, []
    for _ in list_folds(recipe):
        epochs = recipe.classifier.epochs
        peaks.append(left + weigh_training(rates.classifier_bytes, epochs))
        for gone in range(stores - kept):  # the weights behind a store go with it
            weights = (stores - 1 - gone) * rates.classifier_bytes
            before = weights + gone * (rest + written) + store
            peaks.append(left + before + written + weigh_training(rates.lstm_bytes, 2 * mean))
        left += (stores - kept) * (rest + written) + kept * (store + rates.classifier_bytes)
    for _ in range(kept * len(list_folds(recipe))):
        peaks.append(left + written + weigh_training(rates.lstm_bytes, kept_by_lstm + mean))
        left += written + kept_by_lstm * rates.lstm_bytes
    return max(*peaks, left)
