"""Types of scikit-learn that a `.skops` file may hold beside those that skops trusts itself.

Known to the packer (client) and to the runtime (worker). skops leaves out most types that are not
estimators, among them the trees of every forest. A type is on this list if making and restoring it
runs no code that the file could choose: plain data, and functions that only compute. The list is
frozen: what an operator adds comes from `WHERRY_TRUSTED_SKLEARN_TYPES`. That a forged array inside
a compiled type cannot do harm is the sandbox's work.
"""

from __future__ import annotations

TRUSTED_SKLEARN_TYPES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "numpy": "dtype mean median",
        "scipy.interpolate._bsplines": "BSpline",
        "scipy.sparse._csc": "csc_matrix csc_array",
        "scipy.sparse._csr": "csr_matrix csr_array",
        "sklearn._loss.loss": "AbsoluteError ExponentialLoss HalfBinomialLoss HalfGammaLoss "
        "HalfMultinomialLoss HalfPoissonLoss HalfSquaredError HalfTweedieLoss "
        "HalfTweedieLossIdentity HuberLoss PinballLoss",
        "sklearn.compose._column_transformer": "make_column_selector",
        "sklearn.calibration": "_CalibratedClassifier _SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
        "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
        "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression r_regression",
        "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels": "CompoundKernel ConstantKernel DotProduct "
        "ExpSineSquared Exponentiation Matern Product RationalQuadratic RBF Sum WhiteKernel",
        "sklearn.metrics._dist_metrics": "ChebyshevDistance64 EuclideanDistance64 "
        "ManhattanDistance64 MinkowskiDistance64",
        "sklearn.metrics._scorer": "_PassthroughScorer",
        "sklearn.model_selection._split": "KFold StratifiedKFold",
        "sklearn.multiclass": "_ConstantPredictor",
        "sklearn.neighbors._ball_tree": "BallTree",
        "sklearn.neighbors._kd_tree": "KDTree",
        "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
        "sklearn.tree._tree": "Tree",
        "sklearn.utils._bunch": "Bunch",
    }.items()
    for name in names.split()
)
