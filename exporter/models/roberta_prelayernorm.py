"""RoBERTa-PreLayerNorm: RoBERTa with the norm before each block and one more at the end; an encoder or a decoder.

Source: fairseq's ``--encoder-normalize-before`` (arXiv 1904.01038); parameter names and call signatures as in
``transformers``. Shape letters: B batch, C choices, S sequence, P past, T encoder sequence, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exporter.errors import ConfigError, InputError
from exporter.models.activations import ACTIVATIONS
from exporter.models.attention import CrossAttention, SelfAttention
from exporter.models.checkpoint import PreTrainedModel
from exporter.models.config import RobertaPreLayerNormConfig
from exporter.models.embeddings import RobertaPreLayerNormEmbeddings
from exporter.models.heads import (
    RobertaPreLayerNormClassificationHead,
    RobertaPreLayerNormLMHead,
    choice_loss,
    classifier_dropout,
    flatten_choices,
    keep_logits,
    next_token_loss,
    sequence_loss,
    span_loss,
    token_loss,
)
from exporter.models.inputs import check_inputs
from exporter.models.layers import AttentionBlock, Layer, prepare_context, run_layers
from exporter.models.outputs import (
    BaseModelOutputWithPooling,
    CausalLMOutput,
    MaskedLMOutput,
    MultipleChoiceOutput,
    PastKeyValues,
    QuestionAnsweringOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    as_requested,
)

__all__ = [
    "RobertaPreLayerNormForCausalLM",
    "RobertaPreLayerNormForMaskedLM",
    "RobertaPreLayerNormForMultipleChoice",
    "RobertaPreLayerNormForQuestionAnswering",
    "RobertaPreLayerNormForSequenceClassification",
    "RobertaPreLayerNormForTokenClassification",
    "RobertaPreLayerNormModel",
]


class _AddResidual(nn.Module):
    """dense(x) + residual: the pre-norm ending of every block."""

    def __init__(self, config: RobertaPreLayerNormConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        total: Tensor = self.dropout(self.dense(x)) + residual
        return total


class _AttentionBlock(AttentionBlock):
    def __init__(self, config: RobertaPreLayerNormConfig, attention: SelfAttention | CrossAttention) -> None:
        super().__init__(attention, _AddResidual(config, config.hidden_size))
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def before(self, hidden_states: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(hidden_states)
        return normalized


class _Intermediate(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(self.LayerNorm(hidden_states)))


class _Layer(Layer):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.attention = _AttentionBlock(config, SelfAttention(config))
        self.crossattention = None
        if config.add_cross_attention:
            self.crossattention = _AttentionBlock(config, CrossAttention(config))
        self.intermediate = _Intermediate(config)
        self.output = _AddResidual(config, config.intermediate_size)


class _Encoder(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class _Pooler(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, E) -> (B, E), from the first token."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class RobertaPreLayerNormPreTrainedModel(PreTrainedModel[RobertaPreLayerNormConfig]):
    """What every RobertaPreLayerNorm class shares."""

    config_class = RobertaPreLayerNormConfig
    base_model_prefix = "roberta_prelayernorm"


class RobertaPreLayerNormModel(RobertaPreLayerNormPreTrainedModel):
    """The encoder (with ``is_decoder``: the decoder) without a head; ``add_pooling_layer`` pools the first token."""

    def __init__(self, config: RobertaPreLayerNormConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = RobertaPreLayerNormEmbeddings(config)
        self.encoder = _Encoder(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = _Pooler(config) if add_pooling_layer else None
        self.initialize_weights()

    @classmethod
    def options_for(cls, state: Mapping[str, Tensor], /) -> dict[str, Any]:
        """No pooler for a checkpoint without one (a language model, a token classifier): a random one helps nobody."""
        return {"add_pooling_layer": any("pooler.dense." in name for name in state)}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes a batch.

        Args:
            input_ids: (B, S) int64, each below vocab_size; without those that are cached.
            attention_mask: (B, P + S), 1 for tokens and 0 for padding, or (B, S, P + S) to say it for each query (of a
                decoder, too: such a mask is taken as it is); all ones where it is not given.
            token_type_ids: (B, S) int64, each below type_vocab_size; all zeros where it is not given.
            position_ids: (B, S) int64, rows of the position table. By default positions count tokens that are not
                padding, from pad_token_id + 1; of the cached tokens, those that a mask of two axes attends to.
            inputs_embeds: (B, S, E), in place of input_ids.
            encoder_hidden_states: (B, T, E), of a decoder with cross-attention.
            encoder_attention_mask: (B, T), 1 for tokens and 0 for padding; all ones where it is not given.
            past_key_values: What a decoder returned for the P tokens before.
            use_cache: Whether a decoder returns past_key_values.
            output_attentions, output_hidden_states: Whether to return them.
            return_dict: False returns the output's tuple.

        The last four default to the config's.

        Raises:
            InputError: If a row has more tokens than the positions hold, or a shape or a value does not fit.
        """
        config = self.config
        past_length = check_inputs(
            config,
            self.embeddings.word_embeddings.embedding_dim,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        past_tokens: Tensor | int = past_length or 0
        mask = attention_mask if input_ids is not None else None  # without ids, padding takes positions as well
        if past_length is not None and mask is not None and mask.ndim == 2:
            past_tokens = (mask[:, :past_length] != 0).sum(dim=1, keepdim=True)
        embedded = self.embeddings(input_ids, token_type_ids, inputs_embeds, position_ids, past_tokens)
        self._check_length((past_length or 0) + embedded.shape[1])
        context = prepare_context(
            config,
            embedded,
            attention_mask=attention_mask,
            past=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        encoded = run_layers(
            self.encoder.layer,
            embedded,
            context,
            use_cache=config.is_decoder and (config.use_cache if use_cache is None else use_cache),
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        last = self.LayerNorm(encoded.last_hidden_state)
        states = encoded.hidden_states
        output = BaseModelOutputWithPooling(
            last,
            None if self.pooler is None else self.pooler(last),
            None if states is None else (*states[:-1], last),
            encoded.past_key_values,
            encoded.attentions,
            encoded.cross_attentions,
        )
        return as_requested(output, return_dict, config)

    def _check_length(self, length: int) -> None:
        config = self.config
        if torch.compiler.is_exporting() or config.position_embedding_type == "absolute":
            return  # absolute positions have been checked one by one: padding takes none
        if length > config.max_tokens:
            raise InputError(
                f"The input has {length} tokens, but relative positions reach {config.max_tokens} "
                f"(max_position_embeddings): shorten or split the text."
            )


class RobertaPreLayerNormForCausalLM(RobertaPreLayerNormPreTrainedModel):
    """The decoder with a language-model head: the scores of the next token. Needs ``is_decoder`` to look back only."""

    tied_weights: ClassVar = {"lm_head.decoder.weight": "roberta_prelayernorm.embeddings.word_embeddings.weight"}
    aliases: ClassVar = {"lm_head.decoder.bias": "lm_head.bias"}

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.lm_head = RobertaPreLayerNormLMHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        """Inputs as for the base model, and two more.

        Args:
            labels: (B, S) int64, the tokens themselves: each place is judged by the next; -100 does not count.
            logits_to_keep: How many of the last places get logits (0: all), or which, (n,) int64.
        """
        if labels is not None:
            use_cache = False  # a training step has no use for it
        encoded = self.roberta_prelayernorm(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(keep_logits(encoded.last_hidden_state, logits_to_keep))
        output = CausalLMOutput(
            None if labels is None else next_token_loss(logits, labels),
            logits,
            encoded.past_key_values,
            encoded.hidden_states,
            encoded.attentions,
            encoded.cross_attentions,
        )
        return as_requested(output, return_dict, self.config)


class RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a masked-language-model head."""

    tied_weights: ClassVar = {"lm_head.decoder.weight": "roberta_prelayernorm.embeddings.word_embeddings.weight"}
    aliases: ClassVar = {"lm_head.decoder.bias": "lm_head.bias"}

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.lm_head = RobertaPreLayerNormLMHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        """Inputs as for the base model; ``labels``: (B, S) int64, -100 where there is nothing to predict."""
        encoded = self.roberta_prelayernorm(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(encoded.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels)
        output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)


class RobertaPreLayerNormForSequenceClassification(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a classifier (or a regression) on the first token."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.classifier = RobertaPreLayerNormClassificationHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Inputs as for the base model; ``labels`` as for :func:`~exporter.models.heads.sequence_loss`."""
        encoded = self.roberta_prelayernorm(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(encoded.last_hidden_state)
        loss = None if labels is None else sequence_loss(logits, labels, self.config)
        output = SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)


class RobertaPreLayerNormForMultipleChoice(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a score for each choice."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MultipleChoiceOutput:
        """Inputs as for the base model; each with an axis of choices after the batch:

        (B, C, S), inputs_embeds (B, C, S, width). ``labels``: (B,) int64, which choice is right.
        """
        encoded = self.roberta_prelayernorm(
            flatten_choices(input_ids),
            flatten_choices(attention_mask),
            flatten_choices(token_type_ids),
            position_ids=flatten_choices(position_ids),
            inputs_embeds=flatten_choices(inputs_embeds),
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None  # the encoder has seen to it
        scores = self.classifier(self.dropout(encoded.pooler_output))  # (B * C, 1)
        logits = scores.reshape(given.shape[:2])
        loss = None if labels is None else choice_loss(logits, labels)
        output = MultipleChoiceOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)


class RobertaPreLayerNormForTokenClassification(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a classifier on every token."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput:
        """Inputs as for the base model; ``labels``: (B, S) int64, -100 where a token has no label."""
        encoded = self.roberta_prelayernorm(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels)
        output = TokenClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)


class RobertaPreLayerNormForQuestionAnswering(RobertaPreLayerNormPreTrainedModel):
    """The encoder with two scores on every token: an answer starts here, it ends here."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        if config.num_labels != 2:
            raise ConfigError(f"Question answering has 2 labels, start and end; config.json has {config.num_labels}.")
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringOutput:
        """Inputs as for the base model; ``start_positions`` and ``end_positions``: (B,) int64."""
        encoded = self.roberta_prelayernorm(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start_logits, end_logits = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        loss = span_loss(start_logits, end_logits, start_positions, end_positions)
        output = QuestionAnsweringOutput(loss, start_logits, end_logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)
