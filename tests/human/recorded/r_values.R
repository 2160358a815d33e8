# Values of BradleyTerry2 and ordinal on r_votes.csv, in whose rows system a was shown first. `Rscript r_values.R` writes r_values.json.
#
# BTm: Bradley-Terry with an order effect (at.home), ties dropped, strengths relative to s0.
# clm: a cumulative-link model of win / tie / loss with symmetric thresholds, logit(P(y <= k)) = threshold[k] - (s[a] - s[b] + order).
# It is another model of ties than Davidson's: the strengths agree in order and nearly in size, not in digits.
# glm: Davidson's model with an order effect as the log-linear model that it is (Fienberg and Larntz 1976), a count for each outcome.
suppressMessages({library(BradleyTerry2); library(ordinal); library(jsonlite)})
votes <- read.csv("r_votes.csv")
systems <- sort(unique(c(votes$a, votes$b)))
signed <- sapply(systems, function(s) (votes$a == s) - (votes$b == s))

decisive <- votes[votes$winner != "tie", ]
first <- data.frame(system = factor(decisive$a, systems), at.home = 1)
second <- data.frame(system = factor(decisive$b, systems), at.home = 0)
bt <- BTm(as.integer(decisive$winner == "a"), first, second, ~ system + at.home, id = "system")
plain <- BTm(as.integer(decisive$winner == "a"), first, second, ~ system, id = "system")

answer <- factor(votes$winner, c("b", "tie", "a"), ordered = TRUE)
columns <- data.frame(answer, signed[, -1], order = 1)
# The order effect is the centre of the two symmetric thresholds, so it is not a column of its own.
cl <- clm(answer ~ s1 + s2 + s3, data = columns, threshold = "symmetric")

outcomes <- do.call(rbind, lapply(seq_len(nrow(votes)), function(i) data.frame(
  vote = factor(i), y = as.integer(c("a", "tie", "b") == votes$winner[i]), tie = c(0, 1, 0), order = c(1, .5, 0),
  s1 = signed[i, "s1"] * c(1, .5, 0), s2 = signed[i, "s2"] * c(1, .5, 0), s3 = signed[i, "s3"] * c(1, .5, 0))))
davidson <- glm(y ~ vote + s1 + s2 + s3 + order + tie, poisson, outcomes, control = list(epsilon = 1e-12, maxit = 50))
kept <- c("s1", "s2", "s3", "order", "tie")

write(toJSON(list(
  versions = list(R = R.version.string, BradleyTerry2 = as.character(packageVersion("BradleyTerry2")),
                  ordinal = as.character(packageVersion("ordinal"))),
  bradley_terry = list(coefficients = as.list(coef(plain)), errors = as.list(sqrt(diag(vcov(plain))))),
  bradley_terry_order = list(coefficients = as.list(coef(bt)), errors = as.list(sqrt(diag(vcov(bt))))),
  davidson_order = list(coefficients = as.list(coef(davidson)[kept]), errors = as.list(sqrt(diag(vcov(davidson)))[kept])),
  cumulative_link = list(coefficients = as.list(coef(cl)))
), digits = NA, auto_unbox = TRUE, pretty = TRUE), "r_values.json")
