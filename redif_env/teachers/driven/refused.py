"""Pipelines that cannot be driven, and why. Others are recognised by their scheduler or by the probe."""

from __future__ import annotations

FEW_STEP = "it is a few-step student already; use the many-step model that it was distilled from"
DISCRETE = "discrete diffusion moves between tokens, which have no alpha, sigma or probability flow"
NOISY = "its steps add noise or have an interface of their own, so they have no deterministic counterpart"
OWN_LEVELS = "its tokens or frames are at different levels, and a step here moves a whole sample"
CASCADE = "one call runs several samplers in a cascade: make a teacher of each"
INVERSION = "it runs from images to noise, or changes its latents by gradients between steps"

REFUSED_SCHEDULERS = {
    "CMStochasticIterativeScheduler": FEW_STEP,
    "LCMScheduler": FEW_STEP,
    "TCDScheduler": FEW_STEP,
    "SCMScheduler": FEW_STEP,
    "FlowMatchLCMScheduler": FEW_STEP,
    "FlowMapEulerDiscreteScheduler": FEW_STEP,
    "PiFlowScheduler": FEW_STEP,
    "VQDiffusionScheduler": DISCRETE,
    "AmusedScheduler": DISCRETE,
    "BlockRefinementScheduler": DISCRETE,
    "DiscreteDDIMScheduler": DISCRETE,
    "EntropyBoundScheduler": DISCRETE,
    "UnCLIPScheduler": NOISY,
    "DDPMWuerstchenScheduler": NOISY,
    "RePaintScheduler": NOISY,
    "ScoreSdeVeScheduler": NOISY,
    "KarrasVeScheduler": NOISY,
}
"""By the class of their scheduler."""

REFUSED_PIPELINES = {
    "ConsistencyModelPipeline": FEW_STEP,
    "LatentConsistencyModelPipeline": FEW_STEP,
    "LatentConsistencyModelImg2ImgPipeline": FEW_STEP,
    "SanaSprintPipeline": FEW_STEP,
    "SanaSprintImg2ImgPipeline": FEW_STEP,
    "AnyFlowPipeline": FEW_STEP,
    "AnyFlowFARPipeline": FEW_STEP,
    "AmusedPipeline": DISCRETE,
    "AmusedImg2ImgPipeline": DISCRETE,
    "AmusedInpaintPipeline": DISCRETE,
    "VQDiffusionPipeline": DISCRETE,
    "LLaDA2Pipeline": DISCRETE,
    "DiffusionGemmaPipeline": DISCRETE,
    "UnCLIPPipeline": NOISY,
    "UnCLIPImageVariationPipeline": NOISY,
    "KandinskyPriorPipeline": NOISY,
    "KandinskyV22PriorPipeline": NOISY,
    "KandinskyV22PriorEmb2EmbPipeline": NOISY,
    "WuerstchenPriorPipeline": NOISY,
    "WuerstchenDecoderPipeline": NOISY,
    "StableCascadePriorPipeline": NOISY,
    "StableCascadeDecoderPipeline": NOISY,
    "RePaintPipeline": NOISY,
    "KarrasVePipeline": NOISY,
    "SpectrogramDiffusionPipeline": NOISY,
    "RFD4ProteinaPipeline": NOISY,
    "LTXConditionPipeline": OWN_LEVELS,
    "LTX2ConditionPipeline": OWN_LEVELS,
    "LTX2InContextPipeline": OWN_LEVELS,
    "LTXI2VLongMultiPromptPipeline": OWN_LEVELS,
    "LTX2DFRPipeline": OWN_LEVELS,
    "LTX2DFRTemporalRefinePipeline": OWN_LEVELS,
    "SanaWMPipeline": OWN_LEVELS,
    "SanaWMLTX2Refiner": OWN_LEVELS,
    "HunyuanVideoFramepackPipeline": OWN_LEVELS,
    "HeliosPipeline": OWN_LEVELS,
    "HeliosPyramidPipeline": CASCADE,
    "CycleDiffusionPipeline": INVERSION,
    "LEditsPPPipelineStableDiffusion": INVERSION,
    "LEditsPPPipelineStableDiffusionXL": INVERSION,
    "StableDiffusionDiffEditPipeline": INVERSION,
    "StableDiffusionPix2PixZeroPipeline": INVERSION,
    "StableDiffusionAttendAndExcitePipeline": INVERSION,
    "TextToVideoZeroPipeline": INVERSION,
    "TextToVideoZeroSDXLPipeline": INVERSION,
}
"""By their own class."""
