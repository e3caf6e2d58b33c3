"""RoFormer: a post-norm encoder, or decoder, with rotary position embeddings.

Source: Su et al., arXiv 2104.09864; parameter names and call signatures as in ``transformers``. Shape letters: B batch,
C choices, S sequence, P past, T encoder sequence, E hidden size.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from exporter.models.activations import ACTIVATIONS
from exporter.models.attention import CrossAttention, SelfAttention
from exporter.models.checkpoint import PreTrainedModel
from exporter.models.config import RoFormerConfig
from exporter.models.embeddings import RoFormerEmbeddings, SinusoidalPositions, sinusoid_table
from exporter.models.heads import (
    RoFormerClassificationHead,
    RoFormerLMHead,
    RoFormerSequenceSummary,
    choice_loss,
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
    BaseModelOutput,
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
    "RoFormerForCausalLM",
    "RoFormerForMaskedLM",
    "RoFormerForMultipleChoice",
    "RoFormerForQuestionAnswering",
    "RoFormerForSequenceClassification",
    "RoFormerForTokenClassification",
    "RoFormerModel",
]


class _AddAndNorm(nn.Module):
    """LayerNorm(dense(x) + residual): the post-norm ending of every block."""

    def __init__(self, config: RoFormerConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return normalized


class _Intermediate(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states))


class _Layer(Layer):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.attention = AttentionBlock(SelfAttention(config), _AddAndNorm(config, config.hidden_size))
        self.crossattention = None
        if config.add_cross_attention:
            self.crossattention = AttentionBlock(CrossAttention(config), _AddAndNorm(config, config.hidden_size))
        self.intermediate = _Intermediate(config)
        self.output = _AddAndNorm(config, config.intermediate_size)


class _Encoder(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.embed_positions = SinusoidalPositions(config.max_position_embeddings, config.head_size)
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class RoFormerPreTrainedModel(PreTrainedModel[RoFormerConfig]):
    """What every RoFormer class shares."""

    config_class = RoFormerConfig
    base_model_prefix = "roformer"

    def computed_tensors(self) -> dict[str, Tensor]:
        prefix = "" if isinstance(self, RoFormerModel) else f"{self.base_model_prefix}."
        table = sinusoid_table(self.config.max_position_embeddings, self.config.head_size)
        return {f"{prefix}encoder.embed_positions.weight": table}


class RoFormerModel(RoFormerPreTrainedModel):
    """The encoder, or with ``is_decoder`` the decoder, without a head."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.embeddings = RoFormerEmbeddings(config)
        if config.embedding_width != config.hidden_size:
            self.embeddings_project: nn.Module = nn.Linear(config.embedding_width, config.hidden_size)
        else:
            self.embeddings_project = nn.Identity()
        self.encoder = _Encoder(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """Encodes a batch.

        Args:
            input_ids: (B, S) int64, each below vocab_size; without those that are cached.
            attention_mask: (B, P + S), 1 for tokens and 0 for padding, or (B, S, P + S) to say it for each query (of a
                decoder, too: such a mask is taken as it is); all ones where it is not given.
            token_type_ids: (B, S) int64, each below type_vocab_size; all zeros where it is not given.
            inputs_embeds: (B, S, embedding_size), in place of input_ids.
            encoder_hidden_states: (B, T, E), of a decoder with cross-attention.
            encoder_attention_mask: (B, T), 1 for tokens and 0 for padding; all ones where it is not given.
            past_key_values: What a decoder returned for the P tokens before.
            use_cache: Whether a decoder returns past_key_values.
            output_attentions, output_hidden_states: Whether to return them.
            return_dict: False returns the output's tuple.

        The last four default to the config's. Positions are places in the row, cached ones included.

        Raises:
            InputError: If P + S is beyond max_position_embeddings, or a shape or a value does not fit.
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
        embedded = self.embeddings_project(self.embeddings(input_ids, token_type_ids, inputs_embeds))
        context = prepare_context(
            config,
            embedded,
            attention_mask=attention_mask,
            past=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            angles=self.encoder.embed_positions(embedded.shape[1], past_length),
        )
        output = run_layers(
            self.encoder.layer,
            embedded,
            context,
            use_cache=config.is_decoder and (config.use_cache if use_cache is None else use_cache),
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        return as_requested(output, return_dict, config)


class RoFormerForCausalLM(RoFormerPreTrainedModel):
    """The decoder with a language-model head: the scores of the next token. Needs ``is_decoder`` to look back only."""

    tied_weights: ClassVar = {"cls.predictions.decoder.weight": "roformer.embeddings.word_embeddings.weight"}
    aliases: ClassVar = {"cls.predictions.decoder.bias": "cls.predictions.bias"}

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.cls = RoFormerLMHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutput:
        """Inputs as for the base model, and two more.

        Args:
            labels: (B, S) int64, the tokens themselves: each place is judged by the next; -100 does not count.
            logits_to_keep: How many of the last places get logits (0: all), or which, (n,) int64.
        """
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.cls(keep_logits(encoded.last_hidden_state, logits_to_keep))
        output = CausalLMOutput(
            None if labels is None else next_token_loss(logits, labels),
            logits,
            encoded.past_key_values,
            encoded.hidden_states,
            encoded.attentions,
            encoded.cross_attentions,
        )
        return as_requested(output, return_dict, self.config)


class RoFormerForMaskedLM(RoFormerPreTrainedModel):
    """The encoder with a masked-language-model head."""

    tied_weights: ClassVar = {"cls.predictions.decoder.weight": "roformer.embeddings.word_embeddings.weight"}
    aliases: ClassVar = {"cls.predictions.decoder.bias": "cls.predictions.bias"}

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.cls = RoFormerLMHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        """Inputs as for the base model; ``labels``: (B, S) int64, -100 where there is nothing to predict."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.cls(encoded.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels)
        output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)


class RoFormerForSequenceClassification(RoFormerPreTrainedModel):
    """The encoder with a classifier (or a regression) on the first token."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.classifier = RoFormerClassificationHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Inputs as for the base model; ``labels`` as for :func:`~exporter.models.heads.sequence_loss`."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
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


class RoFormerForMultipleChoice(RoFormerPreTrainedModel):
    """The encoder with a score for each choice."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.sequence_summary = RoFormerSequenceSummary(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MultipleChoiceOutput:
        """Inputs as for the base model; each with an axis of choices after the batch:

        (B, C, S), inputs_embeds (B, C, S, width). ``labels``: (B,) int64, which choice is right.
        """
        encoded = self.roformer(
            flatten_choices(input_ids),
            flatten_choices(attention_mask),
            flatten_choices(token_type_ids),
            inputs_embeds=flatten_choices(inputs_embeds),
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None  # the encoder has seen to it
        scores = self.classifier(self.sequence_summary(encoded.last_hidden_state))  # (B * C, 1)
        logits = scores.reshape(given.shape[:2])
        loss = None if labels is None else choice_loss(logits, labels)
        output = MultipleChoiceOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return as_requested(output, return_dict, self.config)


class RoFormerForTokenClassification(RoFormerPreTrainedModel):
    """The encoder with a classifier on every token."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput:
        """Inputs as for the base model; ``labels``: (B, S) int64, -100 where a token has no label."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
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


class RoFormerForQuestionAnswering(RoFormerPreTrainedModel):
    """The encoder with two scores on every token: an answer starts here, it ends here."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringOutput:
        """Inputs as for the base model; ``start_positions`` and ``end_positions``: (B,) int64."""
        encoded = self.roformer(
            input_ids,
            attention_mask,
            token_type_ids,
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
