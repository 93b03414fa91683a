"""Which data: laws from mixture to loss, fitted to proxies, and the mixture they propose.

swarm.Swarm     the mixtures of the runs and what they measured
laws.LAWS       the laws; horizon: their nesting with steps and sizes; bimix: BiMix
choice.fit      the law of each target that predicts left-out mixtures best, with its interval
propose.propose the best mixture that the swarm supports
transfer        how well proxies rank the mixtures of larger models
"""
