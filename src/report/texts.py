"""The texts of report.html in its languages. Values are put into them with `str.format`."""

import re

LANGUAGES = ("en", "zh")  # in the order of the texts below
HTML_LANGUAGES = {"en": "en", "zh": "zh-CN"}
SEPARATORS = {"en": (", ", "; ", " "), "zh": ("，", "；", "")}

PAGE = {
    "program": ("V-Net prostate segmentation", "V-Net 前列腺分割"),
    "evaluation": ("Evaluation", "评估"),
    "prediction": ("Prediction", "预测"),
    "sections": ("Sections", "章节"),
    "not_a_device": ("Not a medical device; for research.", "不是医疗器械，仅供研究。"),
    # Headings.
    "failures": ("Failures", "不合格"),
    "summary": ("Summary", "汇总"),
    "distribution": ("Distribution", "分布"),
    "cases": ("Cases", "病例"),
    "pictures": ("Pictures", "图像"),
    "training": ("Training", "训练"),
    "configuration": ("Configuration", "配置"),
    "origin": ("Origin", "来源"),
    # The first lines.
    "one_failure": ("1 failure", "1 例不合格"),
    "n_failures": ("{n} failures", "{n} 例不合格"),
    "one_case": ("1 case", "1 例"),
    "n_cases": ("{n} cases", "{n} 例"),
    "one_image": ("of 1 image", "共 1 幅图像"),
    "n_images": ("of {n} images", "共 {n} 幅图像"),
    "no_volume": ("No volume", "没有体积"),
    "mean_dice": ("mean ± standard deviation of {cases}", "{cases}的平均值 ± 标准差"),
    "mean_volume": (
        "mean volume ± standard deviation of {cases}",
        "{cases}的平均体积 ± 标准差",
    ),
    "some_cases": (
        "{n} of {count} images, without failures, empty and earlier masks",
        "{count} 幅图像中的 {n} 幅（不含失败的图像、空掩码和先前的掩码）",
    ),
    "cases_in_folds": ("{cases} in {n} folds", "{cases}（{n} 折）"),
    # Failures.
    "none": ("None.", "无。"),
    "lowest_dice": ("The lowest Dice:", "Dice 系数最低的病例："),
    "not_segmented": ("not segmented", "未分割"),
    "earlier_mask": ("earlier mask", "先前的掩码"),
    "about_evaluation": (
        "Listed are cases with an empty mask, with nothing predicted at base or apex, with a Dice "
        "below {low_dice}, or with slices in another plane than those of the training.",
        "所列病例：掩码为空，底部或尖部没有任何分割结果，Dice 系数低于 {low_dice}，"
        "或扫描层面与训练数据不同。",
    ),
    "about_prediction": (
        "Listed are images that could not be segmented, whose earlier mask stays because it was "
        "edited, is of another image, or cannot be made anew, or whose slices lie in another plane "
        "than those of the training, and masks that are empty, that touch the border of the image "
        "within its slices or of the network grid (the gland may be cut off), of which more than "
        "{cut} % was cut off as no part of the gland, or whose volume is implausible for a "
        "prostate, below {least} or above {most} ml.",
        "所列为未能分割的图像、保留了先前掩码的图像（该掩码被编辑过、属于另一幅图像或无法重新生成）、"
        "扫描层面与训练数据不同的图像，以及下列掩码：为空，"
        "触及图像在层面内的边界或网络网格的边界（腺体可能被截断），"
        "所找到区域超过 {cut} % 因不属于腺体而被切除，或体积对前列腺而言不合理"
        "（小于 {least} ml 或大于 {most} ml）。",
    ),
    # Summary and distribution.
    "mean": ("Mean", "平均值"),
    "std": ("Std", "标准差"),
    "standard_deviation": ("standard deviation", "标准差"),
    "median": ("Median", "中位数"),
    "worst": ("Worst", "最差"),
    "least": ("Least", "最小"),
    "most": ("Most", "最大"),
    "value": ("Value", "数值"),
    "whole_gland": ("Whole gland", "整个腺体"),
    "base": ("Base", "底部"),
    "apex": ("Apex", "尖部"),
    "folds": ("Folds", "各折"),
    "dice_of_fold": ("Dice of fold {fold}, {cases}", "第 {fold} 折的 Dice 系数，{cases}"),
    "about_worst": (
        "Worst is the lowest Dice and, of every other metric, the value farthest from 0.",
        "最差值：Dice 系数取最低值，其他指标取离 0 最远的值。",
    ),
    "about_diagonals": (
        "Distances of empty masks count as the image's diagonal ({cases}).",
        "空掩码的距离按图像对角线计（{cases}）。",
    ),
    "box_plot": ("Box plot of {metric}, medians: {medians}", "{metric}的箱线图，中位数：{medians}"),
    "about_box_plots": (
        "Each dot is a case. The box spans the quartiles, with a line at the median; the whiskers "
        "reach to the last case within 1.5 times the length of the box.",
        "每个点是一例。箱体为上下四分位数，横线为中位数；须线延伸到箱体长度 1.5 倍以内最远的病例。",
    ),
    "about_empty": (
        "Distances of empty masks are left out: their values are a convention.",
        "不含空掩码的距离：其数值只是约定。",
    ),
    # Cases.
    "case": ("Case", "病例"),
    "lowest_first": ("The lowest Dice comes first.", "Dice 系数最低的病例排在最前。"),
    "failures_first": ("Failures come first.", "不合格的病例排在最前。"),
    "sort": ("Click a heading to sort.", "点击表头可排序。"),
    "by_size": ("Differences are sorted by their size.", "体积差按绝对值排序。"),
    "csv": (
        "{csv} beside this file has the same numbers and more.",
        "同一文件夹中的 {csv} 含有这些数值和更多内容。",
    ),
    "about_diameters": (
        "Diameters are extents along the patient's axes; the ellipsoid's volume is π/6 times "
        "their product.",
        "径线是掩码沿患者坐标轴的范围；椭球体积为三条径线乘积的 π/6 倍。",
    ),
    "more_columns": ("More columns: scroll sideways →", "左右滑动查看其余各列 →"),
    # Pictures.
    "reference": ("reference", "参考"),
    "predicted": ("prediction", "预测"),
    "about_planes": (
        "Planes through the centre of the reference, then axial slices from the lower to the upper "
        "end of reference and prediction together.",
        "先是穿过参考掩码中心的平面，再是自下而上的轴位切片，覆盖参考掩码与预测掩码合在一起的范围。",
    ),
    "about_predicted_planes": (
        "Planes through the centre of the prediction, then axial slices from its lower to its "
        "upper end.",
        "先是穿过预测掩码中心的平面，再是自下而上的轴位切片。",
    ),
    "about_letters": (
        "R right, L left, A front, P back, S head, I feet. The grey window runs from percentile "
        "{low} to {high} of the region around the masks.",
        "R 右，L 左，A 前，P 后，S 头，I 足。灰度窗为掩码周围区域的第 {low} 至第 {high} 百分位数。",
    ),
    "about_surface": (
        "The predicted surface from four sides of the patient; the bar is {bar} mm long.",
        "从患者的四侧看预测掩码的表面；标尺长 {bar} mm。",
    ),
    "about_distance": (
        "Its colour is the distance to the surface of the reference: blue where the prediction "
        "lies within it, red where it reaches beyond; grey: no reference.",
        "颜色表示到参考掩码表面的距离：蓝色处预测在参考之内，红色处超出参考；灰色：没有参考。",
    ),
    "distance_scale": (
        "colours of the distances from −{limit} to {limit} mm: blue, white, red",
        "距离从 −{limit} 到 {limit} mm 的颜色：蓝、白、红",
    ),
    "pictured": ("Shown are {n} of {count} cases.", "共 {count} 例，显示其中 {n} 例。"),
    "axial": ("axial", "轴位"),
    "sagittal": ("sagittal", "矢状位"),
    "coronal": ("coronal", "冠状位"),
    "of_fold": ("fold {fold}", "第 {fold} 折"),
    "plane_picture": ("{case}, {plane} plane with outlines", "{case}，{plane}平面及轮廓"),
    "slice_picture": ("{case}, axial slice {slice}", "{case}，轴位切片 {slice}"),
    "surface_picture": ("{case}, surface from the {side}", "{case}，{side}表面"),
    "front": ("front", "前面"),
    "back": ("back", "后面"),
    "left": ("patient's left", "患者左侧"),
    "right": ("patient's right", "患者右侧"),
    # Training.
    "train_loss": ("training loss", "训练损失"),
    "val_dice": ("validation Dice", "验证集 Dice 系数"),
    "learning_rate": ("learning rate", "学习率"),
    "best": ("best: {dice} in epoch {epoch}", "最佳：第 {epoch} 轮，{dice}"),
    "training_curves": (
        "Training curves over {epochs} epochs: loss {loss} at the end",
        "{epochs} 轮的训练曲线：最终损失 {loss}",
    ),
    "about_training": ("From top to bottom, by epoch.", "自上而下，横轴为轮数。"),
    # Configuration.
    "changed_keys": ("Keys that differ from their default.", "与默认值不同的配置项。"),
    "nothing_changed": ("All keys have their default.", "所有配置项均为默认值。"),
    "default_keys": ("{n} keys with their default", "{n} 个取默认值的配置项"),
    # Origin: keys of `ORIGIN`, and networks.
    "network": ("network {n} of {count}", "第 {n} 个网络（共 {count} 个）"),
    "checkpoint": ("checkpoint", "检查点"),
    "model": ("model", "模型"),
    "models": ("models", "模型"),
    "masks": ("masks", "掩码"),
    "written": ("written", "写出时间"),
}
# Keys of the metadata of results; the others are names of programs.
ORIGIN = ("checkpoint", "model", "models", "masks", "reference", "written")

# By their key in the tables of results.
METRICS = {
    "fold": ("Fold", "折"),
    "dice": ("Dice", "Dice 系数"),
    "base_dice": ("Dice, base", "底部 Dice"),
    "apex_dice": ("Dice, apex", "尖部 Dice"),
    "hausdorff_mm": ("Hausdorff distance", "豪斯多夫距离"),
    "hausdorff95_mm": ("95 % Hausdorff distance", "95% 豪斯多夫距离"),
    "boundary_distance_mm": ("Average boundary distance", "平均边界距离"),
    "volume_difference_percent": ("Volume difference", "体积差"),
    "absolute_volume_difference_percent": ("Absolute volume difference", "体积差绝对值"),
    "reference_ml": ("Reference", "参考"),
    "prediction_ml": ("Prediction", "预测"),
    "prostate_ml": ("Volume", "体积"),
    "ellipsoid_ml": ("Ellipsoid", "椭球体积"),
    "left_right_mm": ("Left–right", "左右径"),
    "front_back_mm": ("Front–back", "前后径"),
    "head_foot_mm": ("Head–foot", "上下径"),
    "mean_probability": ("Mean probability", "平均概率"),
}

# By their code, see src/report/findings.py.
FINDINGS = {
    "plane": ("{plane} slices, trained on {trained} ones", "{plane}扫描，训练数据为{trained}"),
    "empty": ("the mask is empty", "掩码为空"),
    "border": (
        "the mask touches the border of the image or of the network grid",
        "掩码触及图像或网络网格的边界",
    ),
    "small": ("less than {least} ml", "小于 {least} ml"),
    "large": ("more than {most} ml", "大于 {most} ml"),
    "cut": (
        "{percent} % of what was found was cut off, far from the core of the gland",
        "所找到区域的 {percent} % 远离腺体核心，已被切除",
    ),
    "low_dice": ("Dice below {low_dice}", "Dice 系数低于 {low_dice}"),
    "empty_reference": ("empty reference", "参考掩码为空"),
    "empty_prediction": ("empty prediction", "预测掩码为空"),
    "no_base": ("nothing predicted at base", "底部没有任何分割结果"),
    "no_apex": ("nothing predicted at apex", "尖部没有任何分割结果"),
}


class Texts:
    """The texts of a language, with what stands between items, clauses and sentences.

    Args:
        language: one of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = HTML_LANGUAGES[language]
        self._number = LANGUAGES.index(language)
        self.comma, self.semicolon, self.space = SEPARATORS[language]

    def __call__(self, key: str, **values: object) -> str:
        """Returns the text of a key of `PAGE` or `METRICS`, with values put in."""
        return (PAGE | METRICS)[key][self._number].format(**values)

    def count(self, number: int, key: str) -> str:
        """Returns a number with its noun, such as "1 case"."""
        return self(f"one_{key}" if number == 1 else f"n_{key}s", n=number)

    def finding(self, code: str, english: str) -> str:
        """Translates the text of a finding; an unknown one stays English."""
        if self._number == 0 or code not in FINDINGS:
            return english
        template, translated = FINDINGS[code][0], FINDINGS[code][self._number]
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))
        found = re.fullmatch(pattern, english)
        if found is None:
            return english
        words = {
            key: self(word) if word in PAGE else word for key, word in found.groupdict().items()
        }
        return translated.format(**words)


def finding_text(code: str, **values: object) -> str:
    """Returns the English text of a finding, with values put in."""
    return FINDINGS[code][0].format(**values)
