"""GroundingDINO and SAM of a few thousand random weights, saved as real ones are: for shapes and files, not quality."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = (
    "wall", "floor", "ceiling", "door", "window", "curtain", "rug", "carpet", "chair", "armchair", "couch", "sofa",
    "table", "coffee", "desk", "bed", "cabinet", "nightstand", "shelf", "bookshelf", "lamp", "monitor", "tv", "screen",
    "trash", "can", "bin", "plant", "box", "picture", "whiteboard", "pillow", "cushion", "book", "books",
)  # fmt: skip


def vocabulary() -> list[str]:
    """As BERT's where the detector has token ids built in; the words come after."""
    tokens = ["[PAD]", *(f"[unused{k}]" for k in range(1, 1030)), *WORDS]
    for place, token in {100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}.items():
        tokens[place] = token
    return tokens


def save_models(folder: Path) -> tuple[Path, Path]:
    """Write both models with their processors; returns their folders."""
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SamConfig,
        SamImageProcessorPil,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
        SwinConfig,
    )

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.txt"
    words.write_text("\n".join(vocabulary()) + "\n")
    gdino, sam = folder / "gdino", folder / "sam"
    swin = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = {
        "model_type": "bert", "vocab_size": len(vocabulary()), "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 256,
    }  # fmt: skip
    detector = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=swin,
            text_config=text,
            d_model=32,
            encoder_layers=1,
            encoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_layers=2,
            decoder_ffn_dim=32,
            decoder_attention_heads=2,
            num_queries=20,
            num_feature_levels=4,
            disable_custom_kernels=True,
        )
    )
    detector.save_pretrained(gdino)
    small = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(small, BertTokenizerFast(vocab=str(words))).save_pretrained(gdino)
    segmenter = SamModel(
        SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=16,
                output_channels=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=128,
                patch_size=16,
                global_attn_indexes=[0],
                window_size=4,
                mlp_dim=32,
                num_pos_feats=8,
            ).to_dict(),
            prompt_encoder_config=SamPromptEncoderConfig(
                hidden_size=16, image_size=128, patch_size=16, mask_input_channels=4
            ).to_dict(),
            mask_decoder_config=SamMaskDecoderConfig(
                hidden_size=16,
                mlp_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                iou_head_depth=1,
                iou_head_hidden_dim=16,
            ).to_dict(),
        )
    )
    segmenter.save_pretrained(sam)
    SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": 128},
            pad_size={"height": 128, "width": 128},
            mask_size={"longest_edge": 32},
            mask_pad_size={"height": 32, "width": 32},
        )
    ).save_pretrained(sam)
    return gdino, sam
