"""`ssl-fast experiment NAME`: studies of the papers, repeated at the size of a laptop.

An experiment is a module with

    Options                     a dataclass, its docstring's Args are the help
    EXAMPLE                     command lines that work
    run(options) -> Outcome     the study; `track` shows its progress

and a line in the table below: the name on the command line, its module, what it shows.
"""

EXPERIMENTS = {
    "class-imbalance": (
        "class_imbalance",
        "batches of few classes: SimCLR, MSN and VICReg against MAE and data2vec",
    ),
    "clustering-properties": (
        "clustering_properties",
        "encodings against embeddings over training: ARI, silhouette, linear probe",
    ),
    "long-tail": (
        "long_tail",
        "PMSN's priors, and other methods, on long-tailed and on balanced digits",
    ),
    "prototype-collapse": (
        "prototype_collapse",
        "PAUC's tiny experiment: NEMD of PCL and PAUC on the unit circle, and its three terms",
    ),
    "resa-ablations": (
        "resa_ablations",
        "ReSA's choices one by one: assignment, momentum, predictor, temperature, augmentation",
    ),
    "uniformity-metrics": (
        "uniformity_metrics",
        "-W2 and -L_U under permutation, cloning and collapse (no training)",
    ),
    "uniformity-training": (
        "uniformity_training",
        "methods with and without the W2 uniformity term: accuracy and spectrum",
    ),
    "uniform-prior": (
        "uniform_prior",
        "which of two features PMSN keeps: a power-law digit or a uniform background",
    ),
}
