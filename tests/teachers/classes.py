"""Every class of diffusers that loops over its scheduler's steps, and what is known of driving it."""

import re
from importlib.util import find_spec
from pathlib import Path

UNTRIED = {
    "a variant of a tested pipeline with other conditions": """
        AnimateDiffControlNetPipeline AnimateDiffPAGPipeline AnimateDiffSDXLPipeline
        AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoControlNetPipeline AnimateDiffVideoToVideoPipeline
        ChromaInpaintPipeline CogVideoXFunControlPipeline CogVideoXImageToVideoPipeline
        CogVideoXVideoToVideoPipeline CogView4ControlPipeline Flux2KleinInpaintPipeline Flux2KleinKVPipeline
        Flux2KleinPipeline FluxControlInpaintPipeline FluxControlNetInpaintPipeline FluxKontextInpaintPipeline
        HunyuanDiTControlNetPipeline HunyuanDiTPAGPipeline HunyuanSkyreelsImageToVideoPipeline
        HunyuanVideoImageToVideoPipeline IFImg2ImgPipeline IFImg2ImgSuperResolutionPipeline IFInpaintingPipeline
        IFInpaintingSuperResolutionPipeline IFSuperResolutionPipeline KandinskyV22ControlnetImg2ImgPipeline
        KandinskyV22ControlnetPipeline KandinskyV22InpaintPipeline LTX2HDRPipeline LTX2ImageToVideoPipeline
        MarigoldIntrinsicsPipeline PixArtSigmaPAGPipeline QwenImage21Pipeline QwenImageControlNetInpaintPipeline
        QwenImageControlNetPipeline QwenImageEditInpaintPipeline QwenImageEditPipeline QwenImageEditPlusPipeline
        QwenImageLayeredPipeline SanaControlNetPipeline SanaPAGPipeline StableDiffusion3ControlNetInpaintingPipeline
        StableDiffusion3ControlNetPipeline StableDiffusion3PAGImg2ImgPipeline StableDiffusion3PAGPipeline
        StableDiffusionControlNetPAGInpaintPipeline StableDiffusionPAGInpaintPipeline StableDiffusionXLAdapterPipeline
        StableDiffusionXLControlNetPAGImg2ImgPipeline StableDiffusionXLControlNetPAGPipeline
        StableDiffusionXLControlNetUnionImg2ImgPipeline StableDiffusionXLControlNetUnionInpaintPipeline
        StableDiffusionXLControlNetUnionPipeline StableDiffusionXLPAGImg2ImgPipeline
        StableDiffusionXLPAGInpaintPipeline WanAnimatePipeline WanVACEPipeline WanVideoToVideoPipeline
        ZImageControlNetInpaintPipeline ZImageControlNetPipeline ZImageInpaintPipeline ZImageOmniPipeline
    """,
    "no small version was built for the tests; the probe decides when you use it": """
        AceStepPipeline AllegroPipeline BlipDiffusionControlNetPipeline BriaFibo2Pipeline BriaFiboEditPipeline
        BriaFiboPipeline BriaPipeline ChronoEditPipeline CogView3PlusPipeline ConsisIDPipeline
        Cosmos2TextToImagePipeline Cosmos2VideoToWorldPipeline Cosmos2_5_PredictBasePipeline
        Cosmos2_5_TransferPipeline Cosmos3OmniPipeline CosmosTextToWorldPipeline CosmosVideoToWorldPipeline
        DreamLiteMobilePipeline DreamLitePipeline EasyAnimateControlPipeline EasyAnimateInpaintPipeline
        EasyAnimatePipeline ErnieImagePipeline GlmImagePipeline HiDreamImagePipeline HunyuanImagePipeline
        HunyuanImageRefinerPipeline HunyuanVideo15ImageToVideoPipeline Ideogram4Pipeline
        JoyImageEditPipeline JoyImageEditPlusPipeline Kandinsky3Img2ImgPipeline Kandinsky3Pipeline
        Kandinsky5I2IPipeline Kandinsky5I2VPipeline Kandinsky5T2IPipeline Kandinsky5T2VPipeline Kandinsky6SRPipeline
        Kandinsky6TI2VAPipeline KandinskyImg2ImgPipeline KandinskyInpaintPipeline KandinskyPipeline
        KolorsImg2ImgPipeline KolorsPAGPipeline KolorsPipeline Krea2Pipeline LDMSuperResolutionPipeline
        LDMTextToImagePipeline LongCatAudioDiTPipeline LongCatImageEditPipeline LongCatImagePipeline LucyEditPipeline
        MotifVideoImage2VideoPipeline MotifVideoPipeline NucleusMoEImagePipeline OmniGenPipeline OvisImagePipeline
        PRXPipeline PRXPixelPipeline SanaImageToVideoPipeline SanaVideoPipeline ShapEImg2ImgPipeline ShapEPipeline
        SkyReelsV2ImageToVideoPipeline SkyReelsV2Pipeline StableAudio3AudioToAudioPipeline
        StableAudio3InpaintPipeline StableAudio3Pipeline StableDiffusionImageVariationPipeline
        StableUnCLIPImg2ImgPipeline StableUnCLIPPipeline VisualClozeGenerationPipeline
    """,
    "its scheduler needs torchsde": "StableAudioPipeline",
    "diffusers no longer maintains it": """
        AltDiffusionImg2ImgPipeline AltDiffusionPipeline AudioDiffusionPipeline AudioLDMPipeline BlipDiffusionPipeline
        DanceDiffusionPipeline I2VGenXLPipeline MusicLDMPipeline PIAPipeline PNDMPipeline PaintByExamplePipeline
        SemanticStableDiffusionPipeline StableDiffusionControlNetXSPipeline StableDiffusionGLIGENPipeline
        StableDiffusionGLIGENTextImagePipeline StableDiffusionInpaintPipelineLegacy StableDiffusionLDM3DPipeline
        StableDiffusionModelEditingPipeline StableDiffusionPanoramaPipeline StableDiffusionPipelineSafe
        StableDiffusionSAGPipeline StableDiffusionXLControlNetXSPipeline TextToVideoSDPipeline UniDiffuserPipeline
        VersatileDiffusionDualGuidedPipeline VersatileDiffusionImageVariationPipeline
        VersatileDiffusionTextToImagePipeline VideoToVideoSDPipeline
    """,
}
"""Classes that are not refused and of which there is no small one in the zoo, by why not."""
UNTRIED_BY_NAME = {name: reason for reason, names in UNTRIED.items() for name in names.split()}

STEPS = re.compile(r"scheduler\w*\.step\(")
TOP_LEVEL = re.compile(r"^(?=class |def |@)", flags=re.MULTILINE)
PIPELINE = re.compile(r"class (\w+)\([^)]*Pipeline\s*[,)]")


def looping_classes():
    """Names of all pipelines of diffusers whose source steps by a scheduler; modular ones step in blocks."""
    found = set()
    for path in Path(find_spec("diffusers").submodule_search_locations[0], "pipelines").rglob("*.py"):
        if "flax" in path.name or "onnx" in path.name:
            continue
        for part in TOP_LEVEL.split(path.read_text(encoding="utf-8")):
            pipeline = PIPELINE.match(part)
            if pipeline and STEPS.search(part):
                found.add(pipeline[1])
    return found
